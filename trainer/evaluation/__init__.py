"""`bestiary evaluate`: do pictures show what their prompts say?"""
