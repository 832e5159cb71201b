//! The report as one page that needs nothing else.

use std::fmt::Write;

use crate::answer::answer;
use crate::cell::Cells;
use crate::plot;
use crate::report::{Run, Table, plots, tables};

const STYLE: &str = "\
*{box-sizing:border-box}\
body{margin:0 auto;max-width:1400px;padding:16px;background:var(--paper);color:var(--ink);\
font:15px/1.5 system-ui,sans-serif}\
h1{font-size:24px;margin:8px 0}h2{font-size:19px;margin:28px 0 8px}\
p{max-width:80ch;margin:4px 0 10px;color:var(--faint)}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;font-size:13px;margin:8px 0}\
dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:14px}\
.plots svg{width:100%;height:auto;border:1px solid var(--grid);border-radius:6px}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}\
th,td{padding:4px 9px;border-bottom:1px solid var(--grid);text-align:right;vertical-align:top}\
th{color:var(--faint);font-weight:600;vertical-align:bottom}\
th:first-child,td:first-child,.words td,.words th,.notes td:last-child,.notes th:last-child{text-align:left}\
.words td:last-child{white-space:nowrap}\
td:first-child{min-width:180px}.numbers td:not(:first-child){white-space:nowrap}\
li{margin:5px 0;max-width:110ch}\
@media (max-width:600px){dl{grid-template-columns:1fr}dd{margin-bottom:6px}ul{padding-left:20px}}";

pub(crate) fn html(run: &Run, cells: Cells<'_>) -> String {
    let mut page = format!(
        r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/><meta name="color-scheme" content="light dark"/><title>Longwire: how a fetch leaves</title><style>{}{STYLE}</style></head><body>
<h1>How a fetch leaves</h1>
<p>Longwire sends records to consumers by several paths. This run compares them, against a real broker over loopback, and shows what the machine gives without one.</p>
"#,
        plot::STYLE
    );
    page += "<div class=\"plots\">\n";
    for plot in plots(cells) {
        page += &plot;
        page.push('\n');
    }
    page += "</div>\n<h2>When is which path better?</h2>\n<ul>\n";
    for sentence in answer(cells) {
        let _ = writeln!(page, "<li>{}</li>", escape(&sentence));
    }
    page += "</ul>\n";
    for table in tables(run, cells) {
        put_table(&mut page, &table);
    }
    page += "<h2>Conditions</h2>\n<dl>\n";
    for (name, value) in &run.conditions {
        let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    }
    page + "</dl>\n</body></html>\n"
}

fn put_table(page: &mut String, table: &Table) {
    let class = match table.head.len() {
        ..=3 => "words",
        _ if table.head.last() == Some(&"theory") => "numbers notes",
        _ => "numbers",
    };
    let _ = write!(
        page,
        "<h2>{}</h2>\n<p>{}</p>\n<div class=\"wide\"><table class=\"{class}\"><thead><tr>",
        escape(table.title),
        escape(&table.note)
    );
    for name in &table.head {
        let _ = write!(page, "<th>{}</th>", escape(name));
    }
    *page += "</tr></thead><tbody>\n";
    for row in &table.rows {
        *page += "<tr>";
        for value in row {
            let _ = write!(page, "<td>{}</td>", escape(value));
        }
        *page += "</tr>\n";
    }
    *page += "</tbody></table></div>\n";
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
