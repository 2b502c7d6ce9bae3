//! What the node itself shows of workers and of the leader, past all that is tested.
use super::*;

impl Installed {
    /// Printers of a task that have printed all.
    pub(super) fn finished(&self, task: &str) -> usize {
        let files = std::fs::read_dir(self.truth())
            .unwrap()
            .filter_map(Result::ok);
        let prefix = format!("otto-agent-{task}-");
        let ours = files.filter(|f| f.file_name().to_string_lossy().starts_with(&prefix));
        let has_end = |path: std::path::PathBuf| {
            let mut file = std::fs::File::open(path).ok()?;
            let length = file.metadata().ok()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(8))).ok()?;
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            text.contains("\nend ").then_some(())
        };
        ours.filter(|f| has_end(f.path()).is_some()).count()
    }

    /// The last line of each file that the node has rotated of these workers, and has yet
    /// to compress: it does so with the next one, 10 s later at the soonest.
    pub(super) fn rotated(&self, task: &str) -> BTreeSet<String> {
        let last = format!(
            "tail -qn 1 /var/log/pods/*_otto-agent-{task}-*/worker/0.log.*[0-9] 2>/dev/null; true"
        );
        let out = self.on_node(&["sh", "-c", &last]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        // Time, stream, whether it is whole.
        let lines = text.lines().filter_map(|l| l.splitn(4, ' ').nth(3));
        lines.map(str::to_owned).collect()
    }

    /// Memory of the leader's process, in KiB.
    pub(super) fn leader_resident(&self) -> i64 {
        let leader = self.leader().unwrap();
        let find = format!(
            r"for p in /proc/[0-9]*; do
                tr '\0' '\n' < $p/environ 2>/dev/null | grep -qx POD_NAME={leader} &&
                grep -q '^Name:.ottoscaler$' $p/status && sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' $p/status
            done; true"
        );
        let out = self.on_node(&["sh", "-c", &find]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        text.trim()
            .parse()
            .unwrap_or_else(|_| panic!("no memory of {leader}: {text:?}"))
    }
}
