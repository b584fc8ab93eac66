"""The neural networks this core runs, in numpy: image upscalers (SRVGG, ESRGAN) and the tiny autoencoder TAESD."""
