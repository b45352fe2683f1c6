"""What every dashboard is made of: queries, one function per kind of panel, and the frame around them.

Called by the boards beside it. All that they have in common is decided here: the data source is a variable, each panel
has a unit and says what it shows, a row is 24 wide. No I/O.
"""

import string
from collections.abc import Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import common as shared
from grafana_foundation_sdk.builders import dashboard as frame
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "alcor"
#: units by Grafana's names
SECONDS, BYTES, SHARE, COUNT, CORES = "s", "bytes", "percentunit", "short", "short"
CHANGES, REQUESTS, PACKETS, PER_SECOND = "cps", "reqps", "pps", "ops"
#: a metric that only such processes have
API, AGENTS = "alcor_changes_open", "alcor_agent_in_sync"
#: how many of thousands of hosts a panel names
SLOWEST = 10

_SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
#: (PromQL, what its series are called)
Query = tuple[str, str]
Panel = Builder[dashboard.Panel]
_Kind = TypeVar("_Kind", timeseries.Panel, heatmap.Panel, stat.Panel, table.Panel)


# -- PromQL -----------------------------------------------------------------------------------------------------------


def rate(metric: str, by: str = "", where: str = "") -> str:
    """What a counter gains per second, summed over all processes that `$instance` names."""
    return f"sum{_by(by)}(rate({metric}{_where(where)}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: str = "", where: str = "") -> str:
    """The duration that this share of the samples did not exceed."""
    inner = rate(f"{histogram}_bucket", f"le, {by}" if by else "le", where)
    return f"histogram_quantile({share:g}, {inner})"


def mean(histogram: str, by: str = "", where: str = "") -> str:
    """Their mean, which is exact."""
    return f"{rate(f'{histogram}_sum', by, where)} / {rate(f'{histogram}_count', by, where)}"


def gauge(metric: str, by: str = "", where: str = "", how: str = "sum") -> str:
    """A gauge over all processes."""
    return f"{how}{_by(by)}({metric}{_where(where)})"


def gained(metric: str, over: str, by: str = "") -> str:
    """What a counter gained in so long."""
    return f"sum{_by(by)}(increase({metric}{_where('')}[{over}]))"


def lacking(metric: str) -> str:
    """How many processes say 0 where 1 is well."""
    return f"count({metric}{_where('')} == 0) or vector(0)"


def share(part: str, whole: str) -> str:
    """Of two rates; 0 where the part has no series yet."""
    return f"({part} or vector(0)) / {whole}"


def top(query: str) -> str:
    """The largest few."""
    return f"topk({SLOWEST}, {query})"


def percentiles(histogram: str) -> list[Query]:
    """The three that are usual."""
    return [(quantile(each, histogram), f"p{each * 100:g}") for each in (0.5, 0.9, 0.99)]


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


def _where(more: str) -> str:
    return "{" + ", ".join(filter(None, ('instance=~"$instance"', more))) + "}"


# -- panels -----------------------------------------------------------------------------------------------------------


def graph(title: str, says: str, unit: str, queries: Sequence[Query], stacked: bool = False) -> Panel:
    """Lines over time; with exemplars, once, where the first query has buckets."""
    legend = shared.VizLegendOptions().display_mode(common.LegendDisplayMode.TABLE)
    legend.placement(common.LegendPlacement.BOTTOM).show_legend(True).calcs(["mean", "max", "lastNotNull"])
    panel = timeseries.Panel().legend(legend).fill_opacity(30 if stacked else 8).line_width(1).min(0)
    panel.tooltip(shared.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    panel.show_points(common.VisibilityMode.NEVER)
    if stacked:
        panel.stacking(shared.StackingConfig().mode(common.StackingMode.NORMAL))
    for place, (query, called) in enumerate(queries):
        panel.with_target(_target(query, called).range().exemplar(place == 0 and "_bucket" in query))
    return _framed(panel, title, says, 12, 9).unit(unit)


def heat(title: str, says: str, histogram: str) -> Panel:
    """A histogram over time, a column per interval; exemplars are dots that lead to traces."""
    query = gained(f"{histogram}_bucket", "$__rate_interval", "le")
    panel = heatmap.Panel().calculate(False).cell_gap(1).exemplars_color("rgba(255,0,255,0.7)").show_y_histogram()
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Turbo").steps(64))
    panel.y_axis(heatmap.YAxisConfig().unit(SECONDS)).show_legend()
    panel.with_target(_target(query, "{{le}}").range().exemplar(True).format(PromQueryFormat.HEATMAP))
    return _framed(panel, title, says, 12, 9).unit(COUNT)


def number(title: str, says: str, unit: str, query: str, red: float | None = None) -> Panel:
    """One number, now, red from a value on; a sparkline behind it."""
    steps = [dashboard.Threshold(value=None, color="green")]
    if red is not None:
        steps.append(dashboard.Threshold(value=red, color="red"))
    panel = stat.Panel().graph_mode(common.BigValueGraphMode.AREA).color_mode(common.BigValueColorMode.VALUE)
    panel.reduce_options(shared.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.thresholds(frame.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    return _framed(panel.with_target(_target(query, "").range()), title, says, 4, 4).unit(unit)


def rows(title: str, says: str, unit: str, query: str) -> Panel:
    """A table of the present values, the largest first."""
    panel = table.Panel().sort_by([shared.TableSortByFieldState().display_name("Value").desc(True)])
    panel.with_target(_target(query, "").instant().format(PromQueryFormat.TABLE))
    hidden = {"Time": True, "__name__": True, "job": True}
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden}))
    return _framed(panel, title, says, 12, 9).unit(unit)


def _target(query: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query).legend_format(legend).datasource(_SOURCE)


def _framed(panel: _Kind, title: str, says: str, span: int, height: int) -> _Kind:
    return panel.title(title).description(says).span(span).height(height).datasource(_SOURCE)


# -- dashboards -------------------------------------------------------------------------------------------------------


def board(uid: str, title: str, says: str, of: str, sections: dict[str, Sequence[Panel]]) -> dashboard.Dashboard:
    """A finished dashboard. `of` is a metric of the processes that `$instance` chooses from: `API` or `AGENTS`."""
    made = frame.Dashboard(title).uid(uid).description(says).tags([TAG]).timezone("browser").readonly()
    made.time("now-1h", "now").refresh("30s").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made.with_variable(frame.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    made.with_variable(_instances(of))
    others = frame.DashboardLink("Alcor Mesh").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
    made.link(others.as_dropdown(True).keep_time(True))
    for section, panels in sections.items():
        made.with_row(frame.Row(section))
        for panel in panels:
            made.with_panel(panel)
    finished = made.build()
    for place, shown in enumerate(finished.panels or (), 1):
        shown.id_val = place
        for letter, target in zip(string.ascii_uppercase, getattr(shown, "targets", ()), strict=False):
            target.ref_id = letter
    return finished


def _instances(of: str) -> frame.QueryVariable:
    everything = dashboard.VariableOption(text="All", value="$__all", selected=True)
    chosen = frame.QueryVariable("instance").label("Process").datasource(_SOURCE).current(everything)
    chosen.query({"query": f"label_values({of}, instance)", "refId": "instance"})
    chosen.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dashboard.VariableSort.NATURAL_ASC)
    chosen.multi(True).include_all(True)
    # All of the API are named one by one, so that agents, which have some of the same metrics, are not among them.
    return chosen if of == API else chosen.all_value(".+")
