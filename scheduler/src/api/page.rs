//! The status page: files that a browser makes a view of the farm of. They hold nothing that is not for everybody; what the page
//! shows, it asks for with the token of whoever looks at it.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};

use super::Answer;
use super::answer::Refusal;

/// What the page may do: run what is here, and ask whoever gave it. Media players work in threads of their own, which are made of
/// what they hold in memory.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
                      media-src 'self' blob:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// What is said with each file.
fn headers() -> [(HeaderName, &'static str); 4] {
    [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ]
}

/// A file of the page.
pub(super) struct File {
    /// Its name.
    pub(super) name: &'static str,
    /// Its media type.
    kind: &'static str,
    content: &'static [u8],
}

/// The page itself.
const INDEX: File = File { name: "index.html", kind: "text/html; charset=utf-8", content: include_bytes!("page/index.html") };

/// The files that it asks for.
pub(super) const FILES: [File; 11] = [
    script("app.js", include_bytes!("page/app.js")),
    script("api.js", include_bytes!("page/api.js")),
    script("farm.js", include_bytes!("page/farm.js")),
    script("jobs.js", include_bytes!("page/jobs.js")),
    script("panel.js", include_bytes!("page/panel.js")),
    script("player.js", include_bytes!("page/player.js")),
    script("submit.js", include_bytes!("page/submit.js")),
    script("words.js", include_bytes!("page/words.js")),
    script("hls.min.js", include_bytes!("page/hls.min.js")),
    File { name: "app.css", kind: "text/css; charset=utf-8", content: include_bytes!("page/app.css") },
    File { name: "icon.svg", kind: "image/svg+xml", content: include_bytes!("page/icon.svg") },
];

const fn script(name: &'static str, content: &'static [u8]) -> File {
    File { name, kind: "text/javascript; charset=utf-8", content }
}

impl IntoResponse for File {
    fn into_response(self) -> Response {
        (headers(), [(header::CONTENT_TYPE, self.kind)], self.content).into_response()
    }
}

pub(super) async fn index() -> File {
    INDEX
}

pub(super) async fn file(name: Result<Path<String>, PathRejection>) -> Answer<File> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let found = FILES.into_iter().find(|file| file.name == name);
    found.ok_or_else(Refusal::no_page)
}
