"""Security groups and their rules. Called by the REST edge through `services.Resource`, and by ports for the default.

A group is a partition: its row and its rules; each change publishes the whole group under one revision. A group in use
cannot be deleted: who refers writes its `by_group` row first and looks at the group last, who deletes marks first and
looks for rows last, so one of the two sees the other (rule D4).
"""

import secrets
from collections.abc import Callable, Iterable, Sequence

from msgspec import UNSET
from msgspec.structs import replace

from planes.control import fence
from planes.control.feed import Entry
from planes.control.indexes import Index, drops, names, puts
from planes.management.caller import Caller
from planes.management.context import Context, asked_project, check_revision, iso
from planes.management.group_looks import GroupLooks
from planes.management.group_rules import RULE_LIMIT_TYPE, parse_rule, rule_view, same_rule
from planes.model.enums import Kind
from planes.model.errors import Conflict, Forbidden, Invalid, not_found
from planes.model.ids import HOME_BITS, Id, home_of, parse, place_of, text
from planes.model.query import Listing, Query
from planes.model.requests import GroupCreate, GroupUpdate, RuleCreate
from planes.model.resources import Direction, Group, NetworkState, Rule
from planes.model.views import GroupView, RuleView
from planes.store.partitions import Apply
from planes.store.rows import Mark
from planes.store.schema import BY_GROUP, GROUPS, PROJECTS
from planes.store.views import Draft, View

DEFAULT = "default"
#: makes the rules that a group is born with, from (ids, group, project, revision)
RuleMaker = Callable[[Sequence[Id], Id, str, int], list[Rule]]


class Groups:
    """The collection `security-groups`."""

    def __init__(self, context: Context) -> None:
        self._c = context
        self._defaults: dict[str, Id] = {}
        self.looks = GroupLooks(context.store)

    async def create(self, who: Caller, wanted: Sequence[GroupCreate]) -> list[GroupView]:
        for item in wanted:
            who.owner(asked_project(item))
            if item.name == DEFAULT:
                raise Conflict("Default security group already exists.", "SecurityGroupDefaultAlreadyExists")
        who.change.mark("validate")
        made = await self._c.all_or_none(
            wanted,
            lambda item: self._create(who.owner(asked_project(item)), item, who.change.id, _egress_any),
            lambda pair: self._delete(pair[0]),
        )
        who.change.mark("write")
        return [_view(row, rules) for row, rules in made]

    async def _create(
        self, project: str, wanted: GroupCreate, change: bytes, rules: RuleMaker, given: Id | None = None
    ) -> tuple[Group, list[Rule]]:
        c = self._c
        id_ = given or c.new_id(secrets.randbits(HOME_BITS))
        home = home_of(id_)
        index: list[Index] = [c.project_index(Kind.GROUP, id_, project)]
        entry = Entry(Kind.GROUP, (id_,), True, project=project, index=names(index))
        await c.announce(id_, entry, puts(index, c.now()))
        await c.slots.claim_quota(project, "security_group", [id_], c.limit(Kind.GROUP))
        rule_ids = [c.new_id(home) for _ in range(4)]

        def apply(draft: Draft, rev: int) -> tuple[Group, list[Rule]]:
            if draft.get(Kind.VOID, id_) is not None:
                raise Conflict("The request took too long and was undone; send it again.", "RetryRequest")
            present: Group | None = draft.get(Kind.GROUP)
            if present is not None:
                return present, [rule for _, rule in draft.all(Kind.RULE)]
            row = Group(id_, project, wanted.name, wanted.description, wanted.stateful, rev, rev, rev, change)
            made = rules(rule_ids, id_, project, rev)
            draft.put(Kind.GROUP, b"", row)
            for rule in made:
                draft.put(Kind.RULE, rule.id, rule)
            draft.set["state"] = int(NetworkState.ACTIVE)
            return row, made

        return (await c.ground.change_group(id_, home, apply)).value

    async def default(self, project: str) -> Id:
        """The project's default group, made at first need: egress any, ingress from itself.

        The project's partition says which id it has before the group is made, so that many who need it make one.
        """
        if project in self._defaults:
            return self._defaults[project]
        c, candidate = self._c, self._c.new_id(secrets.randbits(HOME_BITS))

        def apply(draft: Draft, rev: int) -> Id:
            present: Mark | None = draft.get(Kind.DEFAULT_GROUP)
            if present is None:
                draft.put(Kind.DEFAULT_GROUP, b"", Mark(candidate, rev))
            return Id(present.value) if present else candidate

        id_ = (await c.plane.partitions.change(PROJECTS, (project,), apply)).value
        if (await c.plane.partitions.view(GROUPS, (home_of(id_),), fresh=True)).get(Kind.GROUP) is None:
            wanted = GroupCreate(name=DEFAULT, description="Default security group")
            try:
                await self._create(project, wanted, b"", _egress_any_ingress_self, id_)
            except Conflict:
                await c.plane.partitions.change(PROJECTS, (project,), _forget_default(id_))
                raise
        self._defaults[project] = id_
        return id_

    async def find(self, who: Caller, id: str, *, fresh: bool = True) -> tuple[Group, View]:
        """The group and its partition; raises SecurityGroupNotFound."""
        id_ = parse(id, "security_group_id")
        view = await self._c.plane.partitions.view(GROUPS, (home_of(id_),), fresh=fresh)
        row: Group | None = view.get(Kind.GROUP)
        if row is None or row.id != id_ or not who.sees(row.project):
            raise not_found("security_group", id)
        return row, view

    async def get(self, who: Caller, id: str) -> GroupView:
        row, view = await self.find(who, id)
        return _view(row, view.all(Kind.RULE).values())

    async def list(self, who: Caller, query: Query) -> Listing:
        await self.default(who.project)

        async def views(ids: Sequence[bytes]) -> list[GroupView]:
            found = []
            for id_ in ids:
                view = await self._c.plane.partitions.view(GROUPS, (home_of(Id(id_)),), fresh=True)
                row: Group | None = view.get(Kind.GROUP)
                if row is not None and row.id == id_ and who.sees(row.project):
                    found.append(_view(row, view.all(Kind.RULE).values()))
            return found

        return await self._c.listed(who, Kind.GROUP, query, views)

    async def update(self, who: Caller, id: str, wanted: GroupUpdate, if_match: int | None) -> GroupView:
        row, view = await self.find(who, id)
        if row.name == DEFAULT and wanted.name not in (UNSET, DEFAULT):
            raise Conflict("Updating default security group not allowed.", "SecurityGroupCannotUpdateDefault")
        if wanted.name == DEFAULT and row.name != DEFAULT:
            raise Conflict("Default security group already exists.", "SecurityGroupDefaultAlreadyExists")
        if wanted.stateful is not UNSET and wanted.stateful != row.stateful:
            await self._must_be_unused(row)
        names = ("name", "description", "stateful")
        changes = {name: value for name in names if (value := getattr(wanted, name)) is not UNSET}
        who.change.mark("validate")
        await self._c.write([self._c.feed.row(row.id, Entry(Kind.GROUP, (row.id,), project=row.project))])

        def apply(draft: Draft, rev: int) -> Group:
            old: Group | None = draft.get(Kind.GROUP)
            if old is None:
                raise not_found("security_group", id)
            check_revision(if_match, old.rev)
            new = replace(old, **changes, updated=rev, rev=rev, change=who.change.id)
            draft.put(Kind.GROUP, b"", new)
            return new

        done = await self._c.ground.change_group(row.id, home_of(row.id), apply, who.change.traceparent)
        who.change.mark("write")
        return _view(done.value, view.all(Kind.RULE).values())

    async def delete(self, who: Caller, id: str, if_match: int | None) -> Group:
        row, _ = await self.find(who, id)
        check_revision(if_match, row.rev)
        if row.name == DEFAULT and not who.admin:
            raise Conflict("Removing default security group not allowed.", "SecurityGroupCannotRemoveDefault")
        who.change.mark("validate")
        await self._delete(row)
        who.change.mark("write")
        return row

    async def _delete(self, row: Group) -> None:
        c, home = self._c, home_of(row.id)
        index: list[Index] = [c.project_index(Kind.GROUP, row.id, row.project)]
        entry = Entry(Kind.GROUP, (row.id,), project=row.project, index=names(index))
        await c.write([c.feed.row(row.id, entry)])
        await c.plane.partitions.change(GROUPS, (home,), fence.set_group_state(NetworkState.DELETING))
        try:
            await self._must_be_unused(row)
        except BaseException:
            await c.plane.partitions.change(GROUPS, (home,), fence.set_group_state(NetworkState.ACTIVE))
            raise

        def apply(draft: Draft, _: int) -> list[Id]:
            if draft.static("state") != NetworkState.DELETING:
                raise Conflict("The request took too long and was undone; send it again.", "RetryRequest")
            rules = [Id(key) for key, _ in draft.all(Kind.RULE)]
            draft.drop(Kind.GROUP, b"")
            for key in rules:
                draft.drop(Kind.RULE, key)
            return rules

        done = await c.ground.change_group(row.id, home, apply)
        await c.write(drops(index, done.rev))
        await c.slots.free_quota(row.project, "security_group", [row.id], c.limit(Kind.GROUP))
        await c.slots.free_quota(row.project, "security_group_rule", done.value, c.limit(Kind.RULE))
        if self._defaults.get(row.project) == row.id:
            await c.plane.partitions.change(PROJECTS, (row.project,), _forget_default(row.id))
            del self._defaults[row.project]

    async def _must_be_unused(self, row: Group) -> None:
        """Raise SecurityGroupInUse when a live port has the group; no commit that is under way brings one."""
        for part in range(64):
            read = await self._c.store.read(BY_GROUP, (row.id, part), serial=True)
            for number, where in dict.fromkeys(place_of(id_) for (id_,) in read.rows if isinstance(id_, bytes)):
                network = await self._c.ground.network(number)
                if network is not None:
                    await self._c.ground.change_bucket(network.id, number, where, fence.ungroup(row.id))


class Rules:
    """The collection `security-group-rules`."""

    def __init__(self, context: Context, groups: Groups) -> None:
        self._c = context
        self._groups = groups

    async def create(self, who: Caller, wanted: Sequence[RuleCreate]) -> list[RuleView]:
        rows = await self._c.all_or_none(wanted, lambda item: self._create(who, item), self._delete)
        who.change.mark("write")
        return [rule_view(row) for row in rows]

    async def _create(self, who: Caller, wanted: RuleCreate) -> Rule:
        c = self._c
        group, _ = await self._groups.find(who, wanted.security_group_id, fresh=False)
        planned = parse_rule(wanted, c.new_id(home_of(group.id)), group)
        if planned.remote_group:
            await self._groups.find(who, text(planned.remote_group), fresh=False)
        who.change.mark("validate")
        await c.write([c.feed.row(group.id, Entry(Kind.GROUP, (group.id,), project=group.project))])
        await c.slots.claim_quota(group.project, "security_group_rule", [planned.id], c.limit(Kind.RULE))
        who.change.mark("claim")

        def apply(draft: Draft, rev: int) -> Rule:
            row: Group | None = draft.get(Kind.GROUP)
            if row is None or draft.static("state") == NetworkState.DELETING:
                raise not_found("security_group", wanted.security_group_id)
            present = [rule for _, rule in draft.all(Kind.RULE)]
            for rule in present:
                if same_rule(rule, planned):
                    raise Conflict(
                        f"Security group rule already exists. Rule id is {text(rule.id)}.", "SecurityGroupRuleExists"
                    )
            if len(present) >= c.config.rules_per_group:
                raise Conflict(f"A security group has at most {c.config.rules_per_group} rules.", RULE_LIMIT_TYPE)
            new = replace(planned, created=rev, rev=rev)
            draft.put(Kind.RULE, new.id, new)
            draft.put(Kind.GROUP, b"", replace(row, rev=rev, updated=rev, change=who.change.id))
            return new

        return (await c.ground.change_group(group.id, home_of(group.id), apply, who.change.traceparent)).value

    async def _find(self, who: Caller, id: str) -> Rule:
        id_ = parse(id, "security_group_rule_id")
        view = await self._c.plane.partitions.view(GROUPS, (home_of(id_),), fresh=True)
        row: Rule | None = view.get(Kind.RULE, id_)
        if row is None or not who.sees(row.project):
            raise not_found("security_group_rule", id)
        return row

    async def get(self, who: Caller, id: str) -> RuleView:
        return rule_view(await self._find(who, id))

    async def list(self, who: Caller, query: Query) -> Listing:
        asked = query.filters.get("security_group_id")
        groups = [parse(value, "security_group_id") for value in asked] if asked else None
        if groups is None:
            plain = Query({key: query.filters[key] for key in ("project_id", "tenant_id") if key in query.filters})
            groups = [parse(view.id) for view in (await self._groups.list(who, plain)).items]
        rows: dict[bytes, Rule] = {}
        for group in groups:
            view = await self._c.plane.partitions.view(GROUPS, (home_of(group),), fresh=True)
            rows |= {key: rule for key, rule in view.all(Kind.RULE).items() if who.sees(rule.project)}

        async def views(ids: Sequence[bytes]) -> list[RuleView]:
            return [rule_view(rows[id_]) for id_ in ids if id_ in rows]

        return await self._c.listed(who, Kind.RULE, query, views, sorted(rows))

    async def update(self, who: Caller, id: str, wanted: object, if_match: int | None) -> RuleView:
        raise Invalid("Security group rules cannot be changed; delete the rule and create another.", "HTTPBadRequest")

    async def delete(self, who: Caller, id: str, if_match: int | None) -> Rule:
        row = await self._find(who, id)
        check_revision(if_match, row.rev)
        if not who.sees(row.project):
            raise Forbidden(f"Security group rule {id} belongs to another project.")
        who.change.mark("validate")
        await self._delete(row)
        who.change.mark("write")
        return row

    async def _delete(self, row: Rule) -> None:
        c = self._c
        await c.write([c.feed.row(row.group, Entry(Kind.GROUP, (row.group,), project=row.project))])

        def apply(draft: Draft, rev: int) -> None:
            if draft.get(Kind.RULE, row.id) is None:
                raise not_found("security_group_rule", text(row.id))
            draft.drop(Kind.RULE, row.id)
            group: Group | None = draft.get(Kind.GROUP)
            if group is not None:
                draft.put(Kind.GROUP, b"", replace(group, rev=rev, updated=rev))

        await c.ground.change_group(row.group, home_of(row.group), apply)
        await c.slots.free_quota(row.project, "security_group_rule", [row.id], c.limit(Kind.RULE))


def _egress_any(ids: Sequence[Id], group: Id, project: str, rev: int) -> list[Rule]:
    return [
        Rule(id_, group, project, Direction.EGRESS, version, created=rev, rev=rev)
        for id_, version in zip(ids, (4, 6), strict=False)
    ]


def _egress_any_ingress_self(ids: Sequence[Id], group: Id, project: str, rev: int) -> list[Rule]:
    ingress = [
        Rule(id_, group, project, Direction.INGRESS, version, remote_group=group, created=rev, rev=rev)
        for id_, version in zip(ids[2:], (4, 6), strict=False)
    ]
    return _egress_any(ids, group, project, rev) + ingress


def _forget_default(group: bytes) -> Apply[None]:
    def apply(draft: Draft, _: int) -> None:
        mark: Mark | None = draft.get(Kind.DEFAULT_GROUP)
        if mark is not None and mark.value == group:
            draft.drop(Kind.DEFAULT_GROUP, b"")

    return apply


def _view(row: Group, rules: Iterable[Rule]) -> GroupView:
    ordered = sorted(rules, key=lambda rule: rule.id)
    return GroupView(
        id=text(row.id),
        name=row.name,
        description=row.description,
        project_id=row.project,
        tenant_id=row.project,
        stateful=row.stateful,
        security_group_rules=tuple(rule_view(rule) for rule in ordered),
        created_at=iso(row.created),
        updated_at=iso(row.updated),
        revision_number=row.rev,
    )
