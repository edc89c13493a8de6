"""The classes of torch.optim and their arguments; `make docs` writes this."""

from __future__ import annotations

# fmt: off
TORCH = "2.13.0"
# A star marks what has no default.
OPTIMIZERS = {
    "ASGD": "lr lambd alpha t0 weight_decay foreach maximize differentiable capturable",
    "Adadelta": "lr rho eps weight_decay foreach capturable maximize differentiable",
    "Adafactor": "lr beta2_decay eps d weight_decay foreach maximize",
    "Adagrad": (
        "lr lr_decay weight_decay initial_accumulator_value eps foreach maximize "
        "differentiable fused"
    ),
    "Adam": (
        "lr betas eps weight_decay amsgrad foreach maximize capturable differentiable "
        "fused decoupled_weight_decay"
    ),
    "AdamW": (
        "lr betas eps weight_decay amsgrad maximize foreach capturable differentiable "
        "fused"
    ),
    "Adamax": "lr betas eps weight_decay foreach maximize differentiable capturable",
    "LBFGS": "lr max_iter max_eval tolerance_grad tolerance_change history_size line_search_fn",
    "Muon": "lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn",
    "NAdam": (
        "lr betas eps weight_decay momentum_decay decoupled_weight_decay foreach maximize "
        "capturable differentiable"
    ),
    "RAdam": (
        "lr betas eps weight_decay decoupled_weight_decay foreach maximize capturable "
        "differentiable"
    ),
    "RMSprop": (
        "lr alpha eps weight_decay momentum centered capturable foreach maximize "
        "differentiable"
    ),
    "Rprop": "lr etas step_sizes capturable foreach maximize differentiable",
    "SGD": "lr momentum dampening weight_decay nesterov maximize foreach differentiable fused",
    "SparseAdam": "lr betas eps maximize",
}
SCHEDULERS = {
    "ChainedScheduler": "schedulers*",
    "ConstantLR": "factor total_iters last_epoch",
    "CosineAnnealingLR": "T_max* eta_min last_epoch",
    "CosineAnnealingWarmRestarts": "T_0* T_mult eta_min last_epoch",
    "CyclicLR": (
        "base_lr* max_lr* step_size_up step_size_down mode gamma scale_fn scale_mode "
        "cycle_momentum base_momentum max_momentum last_epoch"
    ),
    "ExponentialLR": "gamma* last_epoch",
    "LambdaLR": "lr_lambda* last_epoch",
    "LinearLR": "start_factor end_factor total_iters last_epoch",
    "MultiStepLR": "milestones* gamma last_epoch",
    "MultiplicativeLR": "lr_lambda* last_epoch",
    "OneCycleLR": (
        "max_lr* total_steps epochs steps_per_epoch pct_start anneal_strategy "
        "cycle_momentum base_momentum max_momentum div_factor final_div_factor "
        "three_phase last_epoch"
    ),
    "PolynomialLR": "total_iters power last_epoch",
    "ReduceLROnPlateau": "mode factor patience threshold threshold_mode cooldown min_lr eps",
    "SequentialLR": "schedulers* milestones* last_epoch",
    "StepLR": "step_size* gamma last_epoch",
}
