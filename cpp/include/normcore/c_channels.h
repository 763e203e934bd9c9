// Written by `python3 dev.py signatures` from cpp/src/ops/signatures.h.
// A part of c_api.h.
// clang-format off

NORMCORE_API normcore_status normcore_batch_norm(
    const normcore_const_tensor* x,
    const normcore_const_tensor* weight,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
NORMCORE_API normcore_status normcore_instance_norm(
    const normcore_const_tensor* x,
    const normcore_const_tensor* weight,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
// Takes no running statistics.
NORMCORE_API normcore_status normcore_group_norm(
    const normcore_const_tensor* x,
    int64_t num_groups,
    const normcore_const_tensor* weight,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
// The running statistics must be given.
NORMCORE_API normcore_status normcore_batch_renorm(
    const normcore_const_tensor* x,
    const normcore_const_tensor* weight,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
NORMCORE_API normcore_status normcore_batch_instance_norm(
    const normcore_const_tensor* x,
    const normcore_const_tensor* rho,
    const normcore_const_tensor* weight,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
NORMCORE_API normcore_status normcore_switchable_norm(
    const normcore_const_tensor* x,
    const normcore_const_tensor* mean_logits,
    const normcore_const_tensor* var_logits,
    const normcore_const_tensor* weight,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
// Has no running_spread.
NORMCORE_API normcore_status normcore_mean_only_batch_norm(
    const normcore_const_tensor* x,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
// p counts where statistics are those of x.
NORMCORE_API normcore_status normcore_lp_batch_norm(
    const normcore_const_tensor* x,
    double p,
    const normcore_const_tensor* weight,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
// k counts where statistics are those of x.
NORMCORE_API normcore_status normcore_topk_batch_norm(
    const normcore_const_tensor* x,
    int64_t k,
    const normcore_const_tensor* weight,
    const normcore_const_tensor* bias,
    const normcore_tensor* y,
    const normcore_channel_options* options,
    const normcore_context* context);
