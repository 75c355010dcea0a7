"""Part maps: parts and kinds found in pictures, found again, edited and measured."""
