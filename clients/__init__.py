"""What happens on a device: the frozen backbone, its prompts, and their training."""
