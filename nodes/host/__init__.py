"""What the other rooms know of ComfyUI: its versions, sockets, folders, menus, progress."""
