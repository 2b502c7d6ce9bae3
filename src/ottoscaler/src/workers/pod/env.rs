//! What a worker is told.
use k8s_openapi::api::core::v1::{
    EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, SecretEnvSource,
};

use super::volumes;
use crate::domain::{
    task::Task,
    template::{OURS, Template, Variable},
};

/// Of the programs that look at their certificates elsewhere.
const CA_VARIABLES: [&str; 3] = ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"];

/// Ours after the request's, so that a build config cannot disguise a worker.
pub(super) fn environment(
    task: &Task,
    index: u32,
    attempt: u32,
    template: &Template,
) -> Vec<EnvVar> {
    let spec = &task.spec;
    let mut values = template.environment.clone();
    // Programs do not agree on the case.
    for (name, value) in &template.proxies {
        values.insert((*name).to_owned(), value.clone());
        values.insert(name.to_lowercase(), value.clone());
    }
    if template.ca_bundle.is_some() {
        values.extend(CA_VARIABLES.map(|name| (name.to_owned(), volumes::ca_file())));
    }
    let value = |ours: &Variable| (ours.name.to_owned(), ours.value(spec, index, attempt));
    values.extend(OURS.iter().map(value));
    values.extend(
        spec.traceparent
            .clone()
            .map(|t| ("TRACEPARENT".to_owned(), t)),
    );
    values.remove("POD_NAME");
    let mut env: Vec<EnvVar> = values
        .into_iter()
        .map(|(name, value)| EnvVar {
            name,
            value: Some(escape(&value)),
            value_from: None,
        })
        .collect();
    env.push(EnvVar {
        name: "POD_NAME".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.name".to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
    });
    env
}

/// Secrets come by name only; what is in `environment` wins over them.
pub(super) fn from_secrets(template: &Template) -> Option<Vec<EnvFromSource>> {
    let sources = template.secrets.iter().map(|name| EnvFromSource {
        secret_ref: Some(SecretEnvSource {
            name: name.clone(),
            optional: Some(false),
        }),
        ..EnvFromSource::default()
    });
    Some(sources.collect()).filter(|all: &Vec<_>| !all.is_empty())
}

/// Kubernetes expands `$(NAME)` in values; `$$` stands for `$`.
pub(super) fn escape(value: &str) -> String {
    value.replace('$', "$$")
}
