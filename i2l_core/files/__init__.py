"""Files that foreign programs made, and files that we write: read strictly, written whole or not at all."""
