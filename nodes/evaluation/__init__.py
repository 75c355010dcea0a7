"""Do pictures show what was asked for?"""
