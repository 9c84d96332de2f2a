"Everything for a notebook: fastai's vision names and ours. Where both have a name (`run`), ours is meant."
from fastai.vision.all import *
from .images import *
from .data import *
from .sources import *
from .phantom import *
from .augment import *
from .blocks import *
from .models import *
from .train import *
from .interpret import *
from .trust import *
from .learner import *
from .infer import *
from .evaluate import *
from .audit import *
from .sort import *
