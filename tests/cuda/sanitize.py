"""A short list of calls for compute-sanitizer: each kernel once or twice, odd sizes."""

import torch

import normcore as nc


def main():
    make = torch.Generator("cuda").manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):

        def array(*shape, dtype=dtype):
            return torch.randn(*shape, generator=make, device="cuda").to(dtype)

        for rows, n in [(5, 7), (9, 64), (3, 771), (2, 4097), (2, 40000), (1, 600001)]:
            x, dy, w, b = array(rows, n), array(rows, n), array(n), array(n)
            _, stats = nc.layer_norm(x, w, b, return_stats=True)
            nc.layer_norm_backward(dy, x, w, b, stats=stats)
            nc.rms_norm(x, w, residual=dy)
            nc.rms_norm_backward(dy, x, w)
        for shape in [(3, 6, 5, 7), (2, 6, 90, 101)]:
            x, dy, w, b = array(*shape), array(*shape), array(6), array(6)
            for a, d in [(x, dy), (x.contiguous(memory_format=torch.channels_last), dy)]:
                nc.batch_norm(a, w, b, training=True)
                nc.batch_norm_backward(d, a, w, b, training=True)
                nc.group_norm(a, 3, w, b)
                nc.group_norm_backward(d, a, 3, w, b)
                nc.instance_norm_backward(d, a, w, b)
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
