"""A plain PyTorch loop written by hand: one model, set anew for each client. --threads 0: all cores."""

import shared
import torch
import torch_model


def main() -> None:
    args = shared.arguments(threads=0)
    if args.threads:
        torch.set_num_threads(args.threads)
    work = shared.load(args)
    model = torch_model.make(work)
    names = list(model.parameters())
    optimizer = torch.optim.SGD(names, lr=work.learning_rate)
    x, y = torch.from_numpy(work.x), torch.from_numpy(work.y).long()
    offsets, sizes = work.offsets.tolist(), work.sizes
    start = [p.detach().clone() for p in names]

    clock = shared.Clock()
    for cohort in work.cohorts:
        total = [torch.zeros_like(p) for p in start]
        share = (sizes[cohort] / sizes[cohort].sum()).tolist()
        for client, weight in zip(cohort.tolist(), share, strict=True):
            with torch.no_grad():
                torch._foreach_copy_(names, start)
            first, end = offsets[client], offsets[client + 1]
            for at in range(first, end, work.batch_size):
                rows = slice(at, min(at + work.batch_size, end))
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(total, names, alpha=weight)
        start = total
        clock.tick()
    with torch.no_grad():
        torch._foreach_copy_(names, start)
    shared.report(args, work, clock, torch_model.layers(model), "torch", "numpy")


if __name__ == "__main__":
    main()
