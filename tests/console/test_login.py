"""The console where the API wants to know who calls: log in, see what one's roles allow, log out."""

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.support import Up, alcor
from tests.support.browser import Tab, chromium

pytestmark = [pytest.mark.server, pytest.mark.kernel]

PASSWORDS = {"alice": "alice's password", "bob": "bob's password"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    data = tmp_path_factory.mktemp("login") / "data"
    for name, role in (("alice", "member:blue"), ("bob", "admin:ops")):
        alcor("user", "add", name, "--role", role, ALCOR_DATA=str(data), ALCOR_PASSWORD=PASSWORDS[name])
    users = str(data / "users.json")
    account = {"ALCOR_AUTH_USERS": users, "ALCOR_USER": "bob", "ALCOR_PASSWORD": PASSWORDS["bob"]}
    with Up(data, 1, ("--auth", "embedded"), **account) as up:  # type: ignore[arg-type]
        yield up


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def log_in(page: Page, user: str, password: str, project: str = "") -> None:
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_label("Project").fill(project)
    page.get_by_role("button", name="Log in").click()


def test_a_member_and_an_administrator(cloud: Up, browser: Browser) -> None:
    tab = Tab(browser, cloud.api)
    page = tab.page
    page.goto(f"{cloud.api}/console#/networks")
    log_in(page, "alice", "not the password")
    expect(page.get_by_role("alert")).to_have_text("User, password and project do not go together.")
    log_in(page, "alice", PASSWORDS["alice"], "ops")
    expect(page.get_by_role("alert")).to_have_text("User, password and project do not go together.")
    log_in(page, "alice", PASSWORDS["alice"])
    page.wait_for_selector("[data-state=live]")
    expect(page.get_by_text("alice in blue")).to_be_visible()
    expect(page.get_by_role("link", name="Hosts")).to_have_count(0)
    page.get_by_role("button", name="New network").click()
    page.get_by_label("Name").fill("mine")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    page.goto(f"{cloud.api}/console#/")
    expect(page.locator("[data-summary]")).to_have_text(re.compile("1 network"))
    page.reload()  # the tab stays logged in
    page.wait_for_selector("[data-state=live]")
    expect(page.get_by_text("alice in blue")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert page.evaluate("Object.values(sessionStorage).join().includes('ey')") is False

    log_in(page, "bob", PASSWORDS["bob"])
    page.wait_for_selector("[data-state=live]")
    expect(page.locator("[data-summary]")).to_have_text(re.compile("1 host, 1 network"))
    page.get_by_role("checkbox", name="all projects").uncheck()
    expect(page.locator("[data-summary]")).to_have_text(re.compile("0 networks"))
    assert [said for said in tab.trouble if "401" not in said] == []  # the browser tells of each
    tab.close()


def test_a_token_that_ends_asks_again(cloud: Up, browser: Browser) -> None:
    tab = Tab(browser, cloud.api)
    page = tab.page
    page.goto(f"{cloud.api}/console#/networks")
    log_in(page, "alice", PASSWORDS["alice"])
    page.wait_for_selector("[data-state=live]")
    answer = httpx.get(f"{cloud.api}/v2.0/networks", trust_env=False)
    assert answer.status_code == 401
    page.evaluate("""() => {
        const key = Object.keys(sessionStorage).find((each) => each.startsWith("alcor"));
        sessionStorage.setItem(key, JSON.stringify({ ...JSON.parse(sessionStorage.getItem(key)), token: "old" }));
    }""")
    page.reload()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    log_in(page, "alice", PASSWORDS["alice"])
    page.wait_for_selector("[data-state=live]")
    tab.close()
