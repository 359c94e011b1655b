# Once, on the machine with the GPU: pip install 'fedjax-sim[cuda]'
fedjax-sim doctor
JAX_PLATFORMS=cuda fedjax-sim run quickstart --model cnn --rounds 100
