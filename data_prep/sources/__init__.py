"""Where assets come from, what they are called, and which split they belong to."""
