"""Guided Backpropagation (Springenberg et al. 2014): every ReLU, or an error; never a silently wrong map."""

from guided_backprop.coverage import Coverage, Nonlinearity
from guided_backprop.errors import (
    GuidedBackpropError,
    ImageError,
    JobError,
    LabelError,
    MissingExtraError,
    ModelError,
    NoReluError,
    OpaqueRegionError,
    OptionError,
    OutOfMemoryError,
    OutputError,
    OutputExistsError,
    ScoreError,
)
from guided_backprop.explained.explain import explain_photos
from guided_backprop.explained.read import Saved, SavedMap
from guided_backprop.explained.result import ExplainedPhoto, ExplainedPhotos
from guided_backprop.explanations import Explanation, Explanations
from guided_backprop.jobs.job import Job
from guided_backprop.jobs.reading import Maps, read
from guided_backprop.jobs.summary import Summary, summary
from guided_backprop.labels.box import Box
from guided_backprop.labels.detections import stack_detections
from guided_backprop.methods.cam import GradCAM, GuidedGradCAM
from guided_backprop.methods.compare import compare
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, RectGrad, Saliency
from guided_backprop.methods.method import Method
from guided_backprop.methods.path import InputXGradient, IntegratedGradients
from guided_backprop.methods.smooth_grad import SmoothGrad, SquareGrad, VarGrad
from guided_backprop.models.resolve import load_model
from guided_backprop.neurons.gallery import NeuronGallery, neuron_gallery
from guided_backprop.subject import layer_names
from guided_backprop.trust.faithfulness import Faithfulness, faithfulness
from guided_backprop.trust.sanity import sanity_check
from guided_backprop.trust.verdict import SanityCheck
from guided_backprop.version import __version__

__all__ = [
    "Box",
    "Coverage",
    "DeconvNet",
    "ExplainedPhoto",
    "ExplainedPhotos",
    "Explanation",
    "Explanations",
    "Faithfulness",
    "GradCAM",
    "GuidedBackprop",
    "GuidedBackpropError",
    "GuidedGradCAM",
    "ImageError",
    "InputXGradient",
    "IntegratedGradients",
    "Job",
    "JobError",
    "LabelError",
    "Maps",
    "Method",
    "MissingExtraError",
    "ModelError",
    "NeuronGallery",
    "NoReluError",
    "Nonlinearity",
    "OpaqueRegionError",
    "OptionError",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "RectGrad",
    "Saliency",
    "SanityCheck",
    "Saved",
    "SavedMap",
    "ScoreError",
    "SmoothGrad",
    "SquareGrad",
    "Summary",
    "VarGrad",
    "__version__",
    "compare",
    "explain_photos",
    "faithfulness",
    "layer_names",
    "load_model",
    "neuron_gallery",
    "read",
    "sanity_check",
    "stack_detections",
    "summary",
]
