"""Flax models of the standard benchmarks."""

from fedjax_sim.models.autoencoder import Autoencoder as Autoencoder
from fedjax_sim.models.classifiers import CIFARCNN as CIFARCNN
from fedjax_sim.models.classifiers import CNN as CNN
from fedjax_sim.models.classifiers import MLP as MLP
from fedjax_sim.models.classifiers import LogisticRegression as LogisticRegression
from fedjax_sim.models.pretrained.load import Pretrained as Pretrained
from fedjax_sim.models.pretrained.load import load as load
from fedjax_sim.models.pretrained.tokenizer import Tokenizer as Tokenizer
from fedjax_sim.models.resnet import ResNet18 as ResNet18
from fedjax_sim.models.text import LSTM as LSTM
from fedjax_sim.models.transformer import Transformer as Transformer
from fedjax_sim.models.vit import ViT as ViT
