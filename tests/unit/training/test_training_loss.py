import torch

from megatron_ssd.training.loss import summed_loss


def test_sum_over_valid_tokens_and_their_number() -> None:
    token_loss = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], requires_grad=True)
    mask = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    loss, count, report = summed_loss(mask, token_loss)
    assert loss.item() == 38.0
    assert count.item() == 3
    assert count.dtype == torch.int
    assert report.tolist() == [38.0, 3.0]
    loss.backward()
    assert torch.equal(token_loss.grad, mask)


def test_a_batch_without_valid_tokens_counts_nothing() -> None:
    loss, count, _ = summed_loss(torch.zeros(1, 2), torch.ones(1, 2))
    assert (loss.item(), count.item()) == (0.0, 0)
