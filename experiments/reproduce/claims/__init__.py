"""The claims of the report, by the names that the command line takes."""

from experiments.reproduce.claim import Claim
from experiments.reproduce.claims import data, model, objective, recommender

CLAIMS: dict[str, Claim] = {
    claim.name: claim for module in (model, objective, data, recommender) for claim in module.CLAIMS
}
