#!/usr/bin/env bash
# torch 2.13.0.
#
# torch.pca_lowrank starts from random numbers of the global generator, and by default asks for no more directions
# than it returns. Of data whose singular values fall slowly, as those of vision features do (here as the root of
# their rank), two calls on the same tensor agree in the singular values (to a few percent) and not in the components:
# half of the variables have their largest weight in another component, as a code that groups variables by it will
# see. Of four times as many components the first ones all but agree with the exact ones; ten power iterations in
# place of two leave a fourth of the variables elsewhere. A call also moves the generator on, so that whatever is
# drawn next (a sampled token, a dropout mask) is another one than without it.
#
# Fails if two calls agree, if more components help less than more iterations, or if the generator stays where it is.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
cd "$folder"

"$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { tail -20 "$folder/log"; exit 1; }
import torch

torch.manual_seed(0)
KEPT = 16
scales = torch.arange(1, 1025.0) ** -0.5
turn = torch.linalg.qr(torch.randn(1024, 1024)).Q
values = torch.sigmoid(2 * torch.randn(576, 1024) * scales @ turn).T  # 576 variables
exact = torch.linalg.svd(values - values.mean(dim=0), full_matrices=False)
right = exact.Vh[:KEPT].abs().argmax(dim=0)


def call(q=KEPT, niter=2):
    _, lengths, components = torch.pca_lowrank(values, q=q, niter=niter)
    return lengths[:KEPT], components[:, :KEPT].abs().argmax(dim=1)


def differ(left, right):
    return float((left != right).float().mean())


(lengths, groups), (others, again) = call(), call()
apart = float(((lengths - others).abs() / others).max())
print(f"two calls: singular values at most {apart:.1%} apart, {differ(groups, again):.0%} of the variables elsewhere")
assert apart < 0.1
assert differ(groups, again) > 0.3
iterated, wider = differ(call(niter=10)[1], right), differ(call(q=4 * KEPT)[1], right)
print(f"beside the exact components: {differ(groups, right):.0%} elsewhere,")
print(f"with ten iterations {iterated:.0%}, of four times as many components {wider:.0%}")
assert differ(groups, right) > 0.3
assert wider < 0.05 < 0.1 < iterated
torch.manual_seed(1)
drawn = torch.rand(())
torch.manual_seed(1)
call()
print(f"the next random number: {float(torch.rand(())):.4f}, without the call {float(drawn):.4f}")
torch.manual_seed(1)
call()
assert torch.rand(()) != drawn
PY
