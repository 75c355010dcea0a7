"""The folder of a discovery: reading, validation, part names and uncertainty."""
