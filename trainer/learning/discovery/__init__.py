"""The folder of a discovery: read, checked, named, doubted."""
