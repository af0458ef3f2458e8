//! What can be asked for: the one table that the router and the description are made of.

use axum::routing::MethodFilter;
use farm::job::JobId;
use schemars::JsonSchema;
use serde::Deserialize;

/// Most jobs of a page.
pub(super) const PAGE_MAX: usize = 1000;

/// Jobs of a page when nothing is said.
fn page_usual() -> usize {
    100
}

/// A path and a method that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Shows the farm in a browser.
    Page,
    /// Gives the files of that page.
    PageFile,
    /// Says what the API is.
    Describe,
    /// Takes a job in.
    Submit,
    /// Names jobs.
    List,
    /// Says how a job stands.
    Show,
    /// Has a job stopped.
    Cancel,
    /// Takes a failed job up again.
    Retry,
    /// Gives what was made.
    Output,
    /// Deletes what was made.
    Delete,
    /// Tells what becomes of jobs, and goes on.
    Events,
    /// Says which workers there are.
    Workers,
    /// Says what they encode with.
    Encoders,
}

/// By which method a route is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// GET, and HEAD with it.
    Get,
    /// POST.
    Post,
    /// DELETE.
    Delete,
}

impl Way {
    /// As the router has it.
    pub(super) fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Delete => MethodFilter::DELETE,
        }
    }

    /// As the description has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Delete => "delete",
        }
    }
}

impl Route {
    /// Every route.
    pub(super) const ALL: [Self; 13] = [
        Self::Page,
        Self::PageFile,
        Self::Describe,
        Self::Submit,
        Self::List,
        Self::Show,
        Self::Cancel,
        Self::Retry,
        Self::Output,
        Self::Delete,
        Self::Events,
        Self::Workers,
        Self::Encoders,
    ];

    /// Its path; what stands in braces is any one part of a path, and with a star all that follows.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Page => "/",
            Self::PageFile => "/page/{file}",
            Self::Describe => "/v1/openapi.json",
            Self::Submit | Self::List => "/v1/jobs",
            Self::Show => "/v1/jobs/{id}",
            Self::Cancel => "/v1/jobs/{id}/cancel",
            Self::Retry => "/v1/jobs/{id}/retry",
            Self::Output => "/v1/jobs/{id}/output/{*path}",
            Self::Delete => "/v1/jobs/{id}/output",
            Self::Events => "/v1/events",
            Self::Workers => "/v1/workers",
            Self::Encoders => "/v1/encoders",
        }
    }

    /// Its path as the description has it, which knows no stars.
    pub(super) fn template(self) -> String {
        self.path().replace('*', "")
    }

    /// Whether it is for everybody: then it needs no token.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Page | Self::PageFile | Self::Describe)
    }

    /// Its method.
    pub(super) fn way(self) -> Way {
        match self {
            Self::Submit | Self::Cancel | Self::Retry => Way::Post,
            Self::Delete => Way::Delete,
            Self::Page
            | Self::PageFile
            | Self::Describe
            | Self::List
            | Self::Show
            | Self::Output
            | Self::Events
            | Self::Workers
            | Self::Encoders => Way::Get,
        }
    }

    /// Its name in the description, which clients are made of.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::PageFile => "page_file",
            Self::Describe => "describe",
            Self::Submit => "submit",
            Self::List => "list",
            Self::Show => "show",
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Output => "output",
            Self::Delete => "delete_output",
            Self::Events => "events",
            Self::Workers => "workers",
            Self::Encoders => "encoders",
        }
    }
}

/// The query of a list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only those that have not ended, or that have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Part")]
    pub(super) state: Option<Part>,
    /// At most so many.
    #[serde(default = "page_usual")]
    #[schemars(range(min = 1, max = PAGE_MAX))]
    pub(super) limit: usize,
    /// Only those after this one: `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "JobId")]
    pub(super) after: Option<JobId>,
    /// Only those of this tenant. Whoever is no admin is shown its own, whatever stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(super) tenant: Option<String>,
}

/// The query of a stream of events.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Following {
    /// Whether the stream ends when it has told how all stands.
    #[serde(default)]
    pub(super) once: bool,
}

/// A part of all jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Part {
    /// Those that have not ended.
    Active,
    /// Those that have.
    Ended,
}
