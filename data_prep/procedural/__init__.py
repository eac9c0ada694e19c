"""The embedded data set: families of captioned objects, made from random numbers."""
