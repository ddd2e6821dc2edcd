"""Results for people: the result table, the HTML report, the token heat map. Reads run directories; never runs a model."""

from latentknobs.reporting.console import coloured, legend, print_report
from latentknobs.reporting.findings import read_findings, write_findings
from latentknobs.reporting.page import write_report
from latentknobs.reporting.picture import write_picture
from latentknobs.reporting.samples import write_samples

__all__ = [
    "coloured", "legend", "print_report", "read_findings", "write_findings", "write_picture", "write_report", "write_samples",
]  # fmt: skip
