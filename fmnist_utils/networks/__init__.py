"""Parts of networks, as plain torch modules: torchvision's in blocks, those from scratch, heads. Below the core."""
