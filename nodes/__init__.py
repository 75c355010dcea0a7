"""ComfyUI's face: graph blocks over concepts, scenes and demo."""
