"""The contract between the compiler and the runtime: format, writer and reader of artifacts."""
