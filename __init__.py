"""Bestiary: learn the parts of things from photographs and recombine them."""

WEB_DIRECTORY = "./web"
__version__ = "0.1.0"
