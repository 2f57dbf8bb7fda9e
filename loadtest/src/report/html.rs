//! The report as one HTML file: figures, samples' plots, nothing loaded from elsewhere. Invariant:
//! text from outside is escaped.

use std::fmt::Write as _;

use serde_json::Value;

use super::Findings;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;\
    padding:0 1rem;color:#111;background:#fff}table{border-collapse:collapse}\
    td{padding:.15rem 1rem .15rem 0;border-bottom:1px solid #e5e7eb}\
    td:last-child{font-variant-numeric:tabular-nums;text-align:right}\
    .plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:1.5rem}\
    svg{width:100%;height:auto}.grid{stroke:#e5e7eb}svg text{font-size:11px;fill:#555}\
    .x{text-anchor:middle}.y{text-anchor:end}.bad{color:#b91c1c;font-weight:600}";

/// The whole page.
pub(super) fn page(findings: &Findings) -> String {
    let title = format!("fanlight loadtest {}", findings.command);
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><h1>{title}</h1>"
    );
    for fault in findings.faults.iter().chain(&findings.warnings) {
        let _ = write!(page, "<p class=\"bad\">{}</p>", escape(fault));
    }
    if !findings.not_measured.is_empty() {
        let names = escape(&findings.not_measured.join(", "));
        let _ = write!(page, "<p class=\"bad\">Not measured: {names}</p>");
    }
    page.push_str("<table>");
    for (name, value) in &findings.figures {
        let value = match value {
            Value::Null => "not measured".to_owned(),
            Value::String(text) => escape(text),
            other => escape(&other.to_string()),
        };
        let _ = write!(page, "<tr><td>{}</td><td>{value}</td></tr>", escape(name));
    }
    page.push_str("</table><div class=\"plots\">");
    for plot in &findings.plots {
        let title = escape(plot.title());
        let _ = write!(page, "<figure><h2>{title}</h2>{}{}</figure>", plot.svg(), plot.legend());
    }
    page.push_str("</div></body></html>\n");
    page
}

/// Text for HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
