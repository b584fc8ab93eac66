output "settings" {
  description = "Environment of the function and the API service."
  value       = module.comfyfn.settings
}

output "buckets" {
  description = "Names of the buckets."
  value       = module.comfyfn.buckets
}

output "queues" {
  description = "ARNs of the queues."
  value = {
    uploads              = module.comfyfn.uploads_queue_arn
    uploads_dead_letters = module.comfyfn.uploads_dead_letters_queue_arn
    dead_letters         = module.comfyfn.dead_letters_queue_arn
  }
}

output "roles" {
  description = "ARNs of the roles."
  value = {
    function = module.comfyfn.function_role_arn
    events   = module.comfyfn.events_role_arn
  }
}

output "kustomization" {
  description = "kustomization.yaml: knative/aws with these buckets, queues and roles."
  value = yamlencode({
    apiVersion = "kustomize.config.k8s.io/v1beta1"
    kind       = "Kustomization"
    namespace  = "comfyfn"
    resources  = [var.manifests]
    patches    = module.comfyfn.kustomize_patches
  })
}
