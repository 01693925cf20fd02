{{- define "heddle.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- /* The admin socket of SPIRE's agent, where SPIRE issues; empty: an authority of Heddle's own does. */}}
{{- define "heddle.spire" -}}
{{ with .Values.agent.config.ca }}{{ .spire }}{{ end }}
{{- end }}
