"""Asset files to meshes: what may be read, and a reader for each format."""
