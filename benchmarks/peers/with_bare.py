"""The loop that a researcher writes: load, train, add up, divide, test."""

import sys

import torch

from benchmarks.peers.work import CNN, images, norm, serve, test, test_images, train


def main(clients: int) -> None:
    torch.set_num_threads(1)
    model = CNN()
    pixels, labels = images(clients)
    held_out = test_images()
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def turn() -> float:
        nonlocal weights
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for client in range(clients):
            model.load_state_dict(weights)
            train(model, pixels[client], labels[client])
            for name, value in model.state_dict().items():
                total[name].add_(value)
        weights = {name: value / clients for name, value in total.items()}
        model.load_state_dict(weights)
        test(model, *held_out)
        return norm(weights)

    serve(turn)


if __name__ == "__main__":
    main(int(sys.argv[1]))
