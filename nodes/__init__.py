"""ComfyUI's face: thin graph blocks over concepts, scenes and demo."""
