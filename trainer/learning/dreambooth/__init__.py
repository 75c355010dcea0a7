"""DreamBooth: one thing from a few pictures, as an adapter that keeps what the model knows of its kind."""
