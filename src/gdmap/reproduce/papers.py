"""The papers whose results are reproduced."""

LARGE_LEARNING_RATES = (
    "Crăciun & Ghoshdastidar, On the Convergence of Gradient Descent for Large Learning Rates, arXiv:2402.13108"
)
NON_SINGULARITY = (
    "Crăciun & Ghoshdastidar, Non-Singularity of the Gradient Descent Map for Neural Networks with Piecewise "
    "Analytic Activations, arXiv:2510.24466"
)
