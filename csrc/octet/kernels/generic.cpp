namespace octet::kernels {}
