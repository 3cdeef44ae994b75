"""Internal. Folders that torch.distributed.checkpoint wrote, read without torch: `metadata` reads the pickle that
describes tensors and their chunks, `chunks` puts a tensor together, and `folder` is the format. Start at `folder`."""
