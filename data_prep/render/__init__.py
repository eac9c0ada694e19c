"""Posed pictures of meshes: cameras and light, by ray casting or OpenGL."""
