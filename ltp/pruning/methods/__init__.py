"""The methods, one file each. Every file of this folder is imported, and registers its method."""
