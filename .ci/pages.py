"""The API's pages below the folder in the first argument: of the package and all within it."""

import pkgutil
import sys
import warnings
from pathlib import Path

from pdoc import pdoc, render

import cifar_lab

# of annotations that a dataclass inherits from another module
warnings.filterwarnings("ignore", "Error parsing type annotation")
for name in cifar_lab.__all__:
    getattr(cifar_lab, name)  # pdoc lists what is there, and these are imported late
# named one by one: where a package has __all__, pdoc takes that for all of it
names = [found.name for found in pkgutil.iter_modules(cifar_lab.__path__, "cifar_lab.")]
render.configure(docformat="google")
left_out = ("!cifar_lab.__main__", "!cifar_lab.sweep.preload")  # they do something when imported
pdoc("cifar_lab", *names, *left_out, output_directory=Path(sys.argv[1]))
