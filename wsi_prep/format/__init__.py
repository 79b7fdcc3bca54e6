"""The contract of an output: tables, magnifications, names and places, metadata, JPEG. It reads and writes nothing."""
