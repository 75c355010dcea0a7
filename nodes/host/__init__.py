"""Interface to ComfyUI for the other rooms: versions, sockets, folders, menus, progress."""
