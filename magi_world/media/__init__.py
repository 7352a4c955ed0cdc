"""Pictures and videos on disk: read into frames, written from frames."""
