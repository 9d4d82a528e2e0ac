"""pfl-research 0.6: rounds of its simulated backend, run by the environment that has it."""

import sys

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional as F

from benchmarks.peers.work import BATCH, CNN, LR, Turns, images, norm, test, test_images


class Network(CNN):
    """The network with the two methods that pfl asks of one."""

    def loss(self, pixels, labels):
        return F.cross_entropy(self(pixels), labels)

    def metrics(self, pixels, labels):
        return {"loss": Weighted(float(self.loss(pixels, labels)), len(labels))}


def main(clients: int) -> None:
    torch.set_num_threads(1)
    np.random.seed(0)
    pixels, labels = images(clients)
    held_out = test_images()
    users = {
        client: PyTorchTensorDataset((pixels[client], labels[client]), user_id=str(client))
        for client in range(clients)
    }
    sampler = get_user_sampler("minimize_reuse", list(users))
    data = FederatedDataset(users.__getitem__, sampler)
    backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
    network = Network()
    server = torch.optim.SGD(network.parameters(), lr=1.0)
    model = PyTorchModel(network, torch.optim.SGD, server)
    train = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH)
    rounds = NNAlgorithmParams(
        central_num_iterations=1 << 30,
        # on the users, in the first round alone: what all contestants do is the test below
        evaluation_frequency=1 << 30,
        train_cohort_size=clients,
        val_cohort_size=0,
    )
    turns = Turns()

    class Test(TrainingProcessCallback):
        """The end of a round: the 2,000 images."""

        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            test(network, *held_out)
            return not turns.over(norm(network.state_dict())), Metrics()

    evaluation = NNEvalHyperParams(local_batch_size=BATCH)
    FederatedAveraging().run(
        rounds, backend, model, train, evaluation, [Test()], send_metrics_to_platform=False
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
