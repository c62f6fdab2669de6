from .api import ask as ask
from .api import load as load
from .files.predictions import read_predictions as read_predictions
from .types import Completion as Completion
from .types import Prediction as Prediction
from .types import Question as Question
