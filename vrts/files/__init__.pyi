from .predictions import read_predictions as read_predictions
