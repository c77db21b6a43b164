// Key Vault with every secret of the broker's, closed to the world, read by the broker's identity alone.
// Azure lets the deployment itself write secrets, although the vault's network is closed.

@description('Region.')
param location string

@description('Tags of every resource.')
param tags object

@description('Log Analytics workspace for diagnostics.')
param workspaceId string

@description('Subnet of the private endpoint.')
param subnetId string

@description('Private DNS zone of vaults.')
param privateDnsZoneId string

@description('Object id of the broker\'s identity.')
param principalId string

@description('Name of the voice resource, whose key is kept.')
param voiceAccountName string

@description('Name of the second voice resource; empty if there is none.')
param otherVoiceAccountName string

@description('Whether the voice resources\' keys are kept.')
param storeVoiceKey bool

@description('Which of its two keys, the same of both.')
@allowed([
  'key1'
  'key2'
])
param voiceKey string

@description('BROKER_DATABASE_URL.')
@secure()
param databaseUrl string

@description('BROKER_SIGNING_KEY; empty leaves what is there.')
@secure()
param signingKey string

@description('BROKER_METRICS_TOKEN; empty leaves what is there.')
@secure()
param metricsToken string

@description('ZEP_API_KEY; empty leaves what is there.')
@secure()
param zepApiKey string

var suffix = uniqueString(resourceGroup().id)
var storeOtherVoiceKey = storeVoiceKey && !empty(otherVoiceAccountName)

// https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/security
var keyVaultSecretsUser = '4633458b-17de-408a-b874-0445c86b69e6'

// https://learn.microsoft.com/azure/templates/microsoft.keyvault/2026-02-01/vaults
resource vault 'Microsoft.KeyVault/vaults@2026-02-01' = {
  name: 'kv-${suffix}'
  location: location
  tags: tags
  properties: {
    tenantId: tenant().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enabledForTemplateDeployment: true
    enableSoftDelete: true
    softDeleteRetentionInDays: 90
    enablePurgeProtection: true
    publicNetworkAccess: 'Disabled'
    networkAcls: {
      defaultAction: 'Deny'
      bypass: 'AzureServices'
    }
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.network/2025-05-01/privateendpoints
resource endpoint 'Microsoft.Network/privateEndpoints@2025-05-01' = {
  name: 'pe-kv-${suffix}'
  location: location
  tags: tags
  properties: {
    subnet: {
      id: subnetId
    }
    privateLinkServiceConnections: [
      {
        name: 'vault'
        properties: {
          privateLinkServiceId: vault.id
          groupIds: [
            'vault'
          ]
        }
      }
    ]
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.network/2025-05-01/privateendpoints/privatednszonegroups
resource endpointDns 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2025-05-01' = {
  parent: endpoint
  name: 'default'
  properties: {
    privateDnsZoneConfigs: [
      {
        name: 'vault'
        properties: {
          privateDnsZoneId: privateDnsZoneId
        }
      }
    ]
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.authorization/2022-04-01/roleassignments
resource secretsUser 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(vault.id, principalId, keyVaultSecretsUser)
  scope: vault
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', keyVaultSecretsUser)
    principalId: principalId
    principalType: 'ServicePrincipal'
    description: 'The broker reads its secrets'
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.cognitiveservices/2025-06-01/accounts
resource voiceAccount 'Microsoft.CognitiveServices/accounts@2025-06-01' existing = {
  name: voiceAccountName
}

// https://learn.microsoft.com/azure/templates/microsoft.cognitiveservices/2025-06-01/accounts
resource otherVoiceAccount 'Microsoft.CognitiveServices/accounts@2025-06-01' existing = {
  name: empty(otherVoiceAccountName) ? voiceAccountName : otherVoiceAccountName
}

// https://learn.microsoft.com/azure/templates/microsoft.keyvault/2026-02-01/vaults/secrets
resource voiceKeySecret 'Microsoft.KeyVault/vaults/secrets@2026-02-01' = if (storeVoiceKey) {
  // checkov:skip=CKV_AZURE_41:an expiry would only take the broker down on that day; docs/deploy.md says how keys are rotated
  // checkov:skip=CKV_AZURE_114:it is set; a conditional resource is not looked into
  parent: vault
  name: 'voicelive-api-key'
  properties: {
    contentType: 'Key of the voice resource'
    // ARM works list functions out even where the resource's condition is false, and an account without keys refuses.
    value: storeVoiceKey ? voiceAccount.listKeys()[voiceKey] : ''
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.keyvault/2026-02-01/vaults/secrets
resource otherVoiceKeySecret 'Microsoft.KeyVault/vaults/secrets@2026-02-01' = if (storeOtherVoiceKey) {
  // checkov:skip=CKV_AZURE_41:an expiry would only take the resource out on that day; docs/deploy.md says how keys are rotated
  // checkov:skip=CKV_AZURE_114:it is set; a conditional resource is not looked into
  parent: vault
  name: 'voicelive-api-key-2'
  properties: {
    contentType: 'Key of the second voice resource'
    value: storeOtherVoiceKey ? otherVoiceAccount.listKeys()[voiceKey] : ''
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.keyvault/2026-02-01/vaults/secrets
resource databaseUrlSecret 'Microsoft.KeyVault/vaults/secrets@2026-02-01' = {
  // checkov:skip=CKV_AZURE_41:an expiry would only take the broker down on that day; docs/deploy.md says how keys are rotated
  parent: vault
  name: 'broker-database-url'
  properties: {
    contentType: 'BROKER_DATABASE_URL'
    value: databaseUrl
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.keyvault/2026-02-01/vaults/secrets
resource signingKeySecret 'Microsoft.KeyVault/vaults/secrets@2026-02-01' = if (!empty(signingKey)) {
  // checkov:skip=CKV_AZURE_41:an expiry would only take the broker down on that day; docs/deploy.md says how keys are rotated
  // checkov:skip=CKV_AZURE_114:it is set; a conditional resource is not looked into
  parent: vault
  name: 'broker-signing-key'
  properties: {
    contentType: 'BROKER_SIGNING_KEY'
    value: signingKey
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.keyvault/2026-02-01/vaults/secrets
resource metricsTokenSecret 'Microsoft.KeyVault/vaults/secrets@2026-02-01' = if (!empty(metricsToken)) {
  // checkov:skip=CKV_AZURE_41:an expiry would only take the broker down on that day; docs/deploy.md says how keys are rotated
  // checkov:skip=CKV_AZURE_114:it is set; a conditional resource is not looked into
  parent: vault
  name: 'broker-metrics-token'
  properties: {
    contentType: 'BROKER_METRICS_TOKEN'
    value: metricsToken
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.keyvault/2026-02-01/vaults/secrets
resource zepApiKeySecret 'Microsoft.KeyVault/vaults/secrets@2026-02-01' = if (!empty(zepApiKey)) {
  // checkov:skip=CKV_AZURE_41:an expiry would only take the broker down on that day; docs/deploy.md says how keys are rotated
  // checkov:skip=CKV_AZURE_114:it is set; a conditional resource is not looked into
  parent: vault
  name: 'zep-api-key'
  properties: {
    contentType: 'ZEP_API_KEY'
    value: zepApiKey
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.insights/2021-05-01-preview/diagnosticsettings
resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: vault
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

@description('Name of the vault.')
output name string = vault.name
